"""Caps on what one request may ask for. They bound the work that a caller can cause."""

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 300
MAX_ALLOWED_TOKEN_IDS = 256
MAX_BAD_WORDS = 32  # each can be two token sequences, with and without a blank before it
MAX_BAD_WORD_TOKENS = 8
MAX_STOP_WORD_TOKENS = 64
MAX_NGRAM_TOKENS = 128
MAX_BEAMS = 10  # a step looks at twice as many likeliest tokens, and the engine gives 20
MAX_TOP_LOGPROBS = 20
MAX_LEGACY_LOGPROBS = 5
MAX_CACHE_SALT_CHARS = 256
MAX_PROMPTS = 128
MAX_MESSAGES = 10_000
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMAS = 4096  # subschemas of one schema
MAX_PARALLEL_CALLS = 32
MAX_GUIDED_CHOICES = 1000
MAX_FUNCTIONS = 512
MAX_TEMPLATE_CHARS = 100_000
MAX_DECODED_TOKENS = 1_000_000
MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
