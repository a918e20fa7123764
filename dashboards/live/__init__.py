"""Live view of a running sweep, a Streamlit page."""
