"""The only place that writes: streams, signals, text and JSON on stdout, notes and errors on stderr."""
