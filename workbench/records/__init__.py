"""What a run leaves on disk: metrics, tables, events, environment. No Jupyter, no Plotly."""
