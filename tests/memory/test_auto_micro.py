"""batch.micro=auto on real runs, on a memory that the test limits and a clock that it holds."""
