"""The OpenAI wire format, on both sides of the gateway: parsing and editing of bytes, no I/O."""
