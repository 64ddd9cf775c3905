"""The GPU path: on a GPU where there is one, else on the emulator."""
