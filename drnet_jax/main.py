"""Trains, evaluates and more: python -m drnet_jax.main [COMMAND] [--FLAGS]."""

from drnet_jax.commands import main

if __name__ == "__main__":
    main()
