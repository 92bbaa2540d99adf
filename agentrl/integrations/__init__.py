"""agentrl inside other people's trainers. One module per trainer; each imports that trainer only."""
