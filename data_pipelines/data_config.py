"""The table of sources that a run's config can name as its data."""

from data_pipelines.captioned import CaptionedConfig
from data_pipelines.digits import DigitsConfig
from data_pipelines.synthetic import SyntheticConfig

DataConfig = DigitsConfig | SyntheticConfig | CaptionedConfig
