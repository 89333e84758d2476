"""The sections of a report; evaluation/reporting/contents.py has their order."""
