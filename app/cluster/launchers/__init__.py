"""How engines come to run: started here as child processes, or found where they are."""
