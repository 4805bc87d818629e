"""A worker: one engine on its GPUs, owned from its start to its end, here or as a process with a control API."""
