"""The incremental engine under the parsers of tool calls and reasoning."""
