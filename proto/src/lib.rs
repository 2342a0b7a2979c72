//! Every wire schema of Eastway. The `.proto` files are the source; the code under `src/gen` is
//! generated from them and checked in, so that building needs no `protoc`.
//!
//! Released messages only gain fields; a break is a new package version.

/// Messages of a link's control stream.
pub mod control {
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        rustdoc::invalid_html_tags,
        reason = "generated code"
    )]
    /// `eastway.control.v1`
    pub mod v1 {
        include!("gen/eastway.control.v1.rs");
    }
}

/// What clusters tell each other about their exports.
pub mod federation {
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        rustdoc::invalid_html_tags,
        reason = "generated code"
    )]
    /// `eastway.federation.v1`
    pub mod v1 {
        include!("gen/eastway.federation.v1.rs");
    }
}

/// The header of a stream inside a link.
pub mod tunnel {
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        rustdoc::invalid_html_tags,
        reason = "generated code"
    )]
    /// `eastway.tunnel.v1`
    pub mod v1 {
        include!("gen/eastway.tunnel.v1.rs");
    }
}

/// The certificate authority's API.
pub mod ca {
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        rustdoc::invalid_html_tags,
        reason = "generated code"
    )]
    /// `eastway.ca.v1`
    pub mod v1 {
        include!("gen/eastway.ca.v1.rs");
    }
}

/// What the processes of one cluster tell each other.
pub mod local {
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        rustdoc::invalid_html_tags,
        reason = "generated code"
    )]
    /// `eastway.local.v1`
    pub mod v1 {
        include!("gen/eastway.local.v1.rs");
    }
}

/// How proxies are told what to do.
pub mod xds {
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        rustdoc::invalid_html_tags,
        reason = "generated code"
    )]
    /// `envoy.service.discovery.v3`, as far as it is spoken here.
    pub mod discovery {
        include!("gen/envoy.service.discovery.v3.rs");
    }

    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        rustdoc::invalid_html_tags,
        reason = "generated code"
    )]
    /// `eastway.xds.v1`
    pub mod v1 {
        include!("gen/eastway.xds.v1.rs");
    }
}

/// Envoy's API, by its own package names: `envoy::config::cluster::v3::Cluster`.
pub mod envoy {
    pub use envoy_types::pb::envoy::{config, extensions, service, r#type};
    pub use envoy_types::pb::google;

    /// Names and types of the fields of what proxies are told. A line that begins with no space names a message or, after
    /// `=`, an enumeration; those below it are its fields (number, name, type; `*` before a list's, `%` before a map's two)
    /// or its values.
    pub const SCHEMA: &str = include_str!("gen/envoy.schema");
}

/// The API that Envoy's matchers share with others, `xds.core` and `xds.type.matcher`.
pub mod xds_matcher {
    pub use envoy_types::pb::xds::core;
    pub use envoy_types::pb::xds::r#type::matcher;
}
