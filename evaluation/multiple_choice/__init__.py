"""Multiple choice: published forms of questions, prompts, accuracy and calibration."""
