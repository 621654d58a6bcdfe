"""The commands; each module has `register(commands)`, and loads what it needs when it runs."""
