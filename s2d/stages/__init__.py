"""The stages that train, and the process that runs one: `python -m s2d.stages TASK.json`.

Each algorithm is one short file on a TRL trainer; what they share (models, prompts, checkpoints, progress, stopping)
has a file each. A stage reads its task and the plan, writes events as it goes and `result.json` last, and knows
nothing of jobs, databases or HTTP.
"""
