"""Runs a plan stage by stage, each as a child process, and knows neither HTTP nor Celery nor the database.

The worker and `s2d train` use the same `Pipeline`; they differ in where its events go and in who may stop it. No torch
here: a parent that never loads it cannot leak GPU memory.
"""
