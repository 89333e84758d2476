"""What a paper and a model repository need beside the report: checklists, `.eval_results`."""
