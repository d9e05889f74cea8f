"""What this machine is: its processor, its limits, its accelerators and engines, and the user's cache folder."""
