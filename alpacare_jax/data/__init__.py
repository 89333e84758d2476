"""From instruction records to packed batches of token ids."""
