"""Plans an iteration on available and on absent hardware: it is compiled, never run."""
