//! Rules of the exporting side.
