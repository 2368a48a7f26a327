"""What several commands share: how they run, join other processes, and read numbers; no command of its own."""
