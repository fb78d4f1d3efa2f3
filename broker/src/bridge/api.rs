//! The API's routes and their description: the 25 operations stand in `tenants.rs` and `configs.rs`.

use std::sync::Arc;

use axum::http::StatusCode;
use utoipa::{
    OpenApi,
    openapi::{
        self, ContentBuilder, Ref, ResponseBuilder,
        path::{Operation, ParameterBuilder, ParameterIn},
        security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Inner, REQUESTOR, configs, shapes::ErrorResponse, tenants};

/// Why an operation may be refused: statuses, and what they mean.
const REFUSALS: [(StatusCode, &str); 7] = [
    (
        StatusCode::BAD_REQUEST,
        "The request is not as it should be",
    ),
    (StatusCode::UNAUTHORIZED, "No API key, or a wrong one"),
    (StatusCode::NOT_FOUND, "There is no such thing"),
    (StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
    (StatusCode::UNPROCESSABLE_ENTITY, "A rule is in the way"),
    (
        StatusCode::BAD_GATEWAY,
        "The broker does not answer as it should",
    ),
    (StatusCode::GATEWAY_TIMEOUT, "It took too long"),
];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Vendor bridge",
        description = "Tenants, KMS configs, assignments, tags and tenant secrets of a vendor. Credentials are sealed by the bridge.",
    ),
    servers((url = "/api")),
    components(schemas(ErrorResponse)),
    tags(
        (name = "Tenant", description = "The vendor's customers"),
        (name = "KMS Configuration", description = "Keys at KMSs, and the credentials for them"),
        (name = "Configuration Assignment", description = "Which KMS config serves which tenant"),
        (name = "Tag", description = "Labels that say which service accounts a tenant's configs reach"),
        (name = "Tenant Secret", description = "What keys are derived from, wrapped"),
    ),
)]
struct Document;

/// The routes, and their description.
pub(super) fn document() -> OpenApiRouter<Arc<Inner>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(tenants::create_tenant_v2))
        .routes(routes!(tenants::create_tenant_v1, tenants::tenants))
        .routes(routes!(tenants::secrets))
        .routes(routes!(
            tenants::tenant,
            tenants::update_tenant,
            tenants::delete_tenant
        ))
        .routes(routes!(tenants::invite))
        .routes(routes!(tenants::tenant_assignments))
        .routes(routes!(tenants::begin_rotation))
        .routes(routes!(tenants::commit_rotation))
        .routes(routes!(configs::kms_configs, configs::create_kms_config))
        .routes(routes!(
            configs::kms_config,
            configs::update_kms_config,
            configs::delete_kms_config
        ))
        .routes(routes!(configs::kms_assignments))
        .routes(routes!(
            configs::assignment,
            configs::create_assignment,
            configs::update_assignment,
            configs::delete_assignment
        ))
        .routes(routes!(tenants::tags, tenants::create_tag))
        .routes(routes!(tenants::tag_tenants, tenants::untag_tenants))
}

/// Adds what all operations have in common.
pub(super) fn completed(mut document: openapi::OpenApi) -> openapi::OpenApi {
    const SCHEME: &str = "Authorization";
    let key = ApiKeyValue::with_description("Authorization", "`vab:1:` and an API key");
    let components = document.components.get_or_insert_default();
    let scheme = SecurityScheme::ApiKey(ApiKey::Header(key));
    components.add_security_scheme(SCHEME, scheme);
    let requestor = ParameterBuilder::new()
        .name(REQUESTOR)
        .parameter_in(ParameterIn::Header)
        .required(openapi::Required::True)
        .description(Some("Who asks, or for whom: goes to the audit trail"))
        .schema(Some(
            openapi::ObjectBuilder::new()
                .schema_type(openapi::Type::String)
                .pattern(Some("^[!-~]+$"))
                .max_length(Some(256)),
        ))
        .build();
    for path in document.paths.paths.values_mut() {
        let operations = [
            &mut path.get,
            &mut path.post,
            &mut path.put,
            &mut path.delete,
        ];
        for operation in operations.into_iter().filter_map(Option::as_mut) {
            let none: [&str; 0] = [];
            operation.security = Some(vec![SecurityRequirement::new(SCHEME, none)]);
            operation
                .parameters
                .get_or_insert_default()
                .push(openapi::RefOr::T(requestor.clone()));
            add_refusals(operation);
        }
    }
    document
}

fn add_refusals(operation: &mut Operation) {
    for (status, description) in REFUSALS {
        let body = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("ErrorResponse")))
            .build();
        let response = ResponseBuilder::new()
            .description(description)
            .content("application/json", body)
            .build();
        let responses = &mut operation.responses.responses;
        responses.insert(status.as_str().to_owned(), response.into());
    }
}
