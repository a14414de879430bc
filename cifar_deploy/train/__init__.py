"""Training: recipe, loop, optimisers and schedules."""
