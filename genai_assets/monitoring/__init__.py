"""What the model meets after launch: the requests people make, what they think of the pictures, when to train again.

Belongs here: the inference log (requests described for comparison), drift (yes, no or unknown), curated feedback, and
the decision to ask for a retrain. Nothing here trains, promotes or schedules: the graph reads the answers and acts.
"""
