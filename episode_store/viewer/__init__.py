"""The page of `episode_store view`: a store in a browser, or some of its episodes in one file."""
