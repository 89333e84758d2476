"""What a run needs and how fast it could be, from compiling it without the hardware."""
