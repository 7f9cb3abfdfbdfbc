"""AI Toolkit's door: it imports every package in its extensions/ folder, so a clone there must import, whatever its name."""

AI_TOOLKIT_EXTENSIONS: list = []
