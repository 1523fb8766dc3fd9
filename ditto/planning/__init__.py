"""What a program will take before it runs: seconds by a measured machine and a network, and choices by them."""
