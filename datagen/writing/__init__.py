"""How a teacher is asked for tasks, how its replies are read, and what is kept."""
