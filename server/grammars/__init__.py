"""What a request says about the form of its output -> the engine's Grammar.

Texts are only checked for shape here. The engine compiles them, away from the event loop, and its
errors name the same field.
"""
