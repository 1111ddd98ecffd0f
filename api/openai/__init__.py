"""What the stock `openai` client knows: files, models, chat. Each is one file: schemas, then endpoints."""
