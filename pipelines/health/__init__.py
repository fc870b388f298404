"""The health of a shard set: duplicates, class sizes, image sizes and unusual images, without any model."""
