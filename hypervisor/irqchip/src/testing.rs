//! Random traffic for fuzz targets and property tests.
