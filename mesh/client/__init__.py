"""The SDK: one pure protocol core, a blocking and an asyncio shell."""
