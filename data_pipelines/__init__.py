"""From records to batches: source -> row plan -> tokens -> batch, on grain.

source, source_config   the interface of a source; what every config has
digits, synthetic       sources of generated samples
image_source            images with captions, cropped to buckets
shard_source            samples that `lumina_jax.encode` stored
mixture, row_plan       several sources as one; which records share a row
batches                 rows of a batch, read ahead
scan, annotations       captions and sizes of the images of a folder
tfds_dataset            examples of TensorFlow Datasets
shard_*, write_shards   folders of encoded records, written and checked

To add a source, write a module with a config, derived from `SourceConfig`, and
a class with the members of `Source`; then list the config in `data_config`.

This package imports `tokens`, `packing`, `media` and `files` of lumina_jax, but
neither JAX nor encoders: data workers stay light.
"""
