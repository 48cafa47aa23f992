"""Programs that show Phosphene at work; `make demo` runs the first one."""
