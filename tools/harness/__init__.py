"""What all measurements need: the machine, child processes, and documents that hold what was measured."""
