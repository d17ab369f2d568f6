"""The chat page: Streamlit around the model, the adapter and the run folders."""
