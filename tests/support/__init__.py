"""What several tests need: made-up studies, an ssh server, and a tiny backbone."""
