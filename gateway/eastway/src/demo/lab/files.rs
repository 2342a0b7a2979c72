//! Configuration files of a lab.
