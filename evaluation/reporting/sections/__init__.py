"""The sections of a report; evaluation/reporting/outline.py has their order."""
