"""What a gateway costs: CPU, latency and memory, beside those of its peers. The tools in `native/` are C."""
