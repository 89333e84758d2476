"""What an instruction set holds: measures, figures, a page and a dataset card."""
