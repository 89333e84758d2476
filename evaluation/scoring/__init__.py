"""What a report measures: win rates, differences, signals of texts, what people add."""
