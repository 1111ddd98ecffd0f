"""What the service does, without HTTP: upload a file, make a plan, start, watch and cancel a job, find a student.

The native API, the OpenAI surface, the command line and the tests call the same functions. Each takes a `Context`.
"""
