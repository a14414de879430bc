"""Training: loop, optimisers and schedules."""
