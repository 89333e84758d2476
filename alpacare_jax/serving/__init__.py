"""The served model: protocol, texts, the engine's thread, operations, the page."""
