"""What a run means: gates, claims, cost, verdict, and the page that shows them. No Jupyter."""
