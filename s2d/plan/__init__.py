"""The plan: from a label budget and a model pair to a frozen document that a job executes to the letter.

Nothing here imports torch; a plan costs milliseconds. `document` is what a plan says, `request` what a user may ask
for, `service.make_plan` goes from one to the other.
"""
