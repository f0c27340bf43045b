"""One short function a command: parse, call the library, print."""
