-- What a database of ours holds, one fact a line, for schema_snapshot.txt: `test_migrations.py`.
-- Nothing here depends on the version of PostgreSQL: no OIDs, no owner's own rights (17 added one),
-- no NOT NULL constraints (18 made them rows), no text that the server formats anew.
with ours as (
  select c.oid, c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.reloptions,
         c.relacl, c.relowner, format('%s.%s', n.nspname, c.relname) as name
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
   where n.nspname in ('public', 'vidgen') and c.relkind in ('r', 'v', 'S')
),
columns as (
  select ours.name, a.attname, a.attnum, a.attacl, ours.relowner,
         pg_catalog.format_type(a.atttypid, a.atttypmod) as type, a.attnotnull, a.attidentity,
         pg_catalog.pg_get_expr(d.adbin, d.adrelid) as default_value
    from ours
    join pg_catalog.pg_attribute as a on a.attrelid = ours.oid
    left join pg_catalog.pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
   where a.attnum > 0 and not a.attisdropped and ours.relkind <> 'S'
),
functions as (
  select p.*, l.lanname, format('%s.%s(%s)', n.nspname, p.proname,
           pg_catalog.pg_get_function_identity_arguments(p.oid)) as name
    from pg_catalog.pg_proc as p
    join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
    join pg_catalog.pg_language as l on l.oid = p.prolang
   where n.nspname in ('public', 'vidgen')
),
lines (line) as (
  select format('schema vidgen: grants %s', coalesce((
           select string_agg(format('%s to %s', acl.privilege_type,
                    coalesce(r.rolname, 'public')), ', '
                    order by r.rolname collate "C", acl.privilege_type collate "C")
             from pg_catalog.aclexplode(n.nspacl) as acl
             left join pg_catalog.pg_roles as r on r.oid = acl.grantee
            where acl.grantee <> n.nspowner), 'none'))
    from pg_catalog.pg_namespace as n where n.nspname = 'vidgen'
  union all
  select format('%s %s: row security %s, options %s',
           case relkind when 'r' then 'table' when 'v' then 'view' else 'sequence' end, name,
           case when relforcerowsecurity then 'forced' when relrowsecurity then 'on' else 'off' end,
           coalesce(array_to_string(reloptions, ', '), 'none'))
    from ours
  union all
  select format('%s %s: column %s %s%s%s%s', 'table', name, attname, type,
           case when attnotnull then ' not null' else '' end,
           case when attidentity <> '' then ' identity' else '' end,
           coalesce(' default ' || default_value, ''))
    from columns
  union all
  select format('table %s: constraint %s %s', ours.name, c.conname,
           pg_catalog.pg_get_constraintdef(c.oid))
    from pg_catalog.pg_constraint as c join ours on ours.oid = c.conrelid
   where c.contype <> 'n'
  union all
  select format('table %s: index %s', ours.name, pg_catalog.pg_get_indexdef(i.indexrelid))
    from pg_catalog.pg_index as i join ours on ours.oid = i.indrelid
  union all
  select format('table %s: trigger %s', ours.name, pg_catalog.pg_get_triggerdef(t.oid))
    from pg_catalog.pg_trigger as t join ours on ours.oid = t.tgrelid
   where not t.tgisinternal
  union all
  select format('table %s.%s: policy %s for %s to %s using %s with check %s', schemaname, tablename,
           policyname, cmd, array_to_string(roles, ', '), coalesce(qual, '-'),
           coalesce(with_check, '-'))
    from pg_catalog.pg_policies
   where schemaname in ('public', 'vidgen', 'storage')
  union all
  select format('table %s: grant %s to %s', ours.name, acl.privilege_type,
           coalesce(r.rolname, 'public'))
    from ours
   cross join pg_catalog.aclexplode(ours.relacl) as acl
    left join pg_catalog.pg_roles as r on r.oid = acl.grantee
   where acl.grantee <> ours.relowner
  union all
  select format('table %s: grant %s (%s) to %s', c.name, acl.privilege_type, c.attname,
           coalesce(r.rolname, 'public'))
    from columns as c
   cross join pg_catalog.aclexplode(c.attacl) as acl
    left join pg_catalog.pg_roles as r on r.oid = acl.grantee
   where acl.grantee <> c.relowner
  union all
  select format('table %s.%s: published by %s', schemaname, tablename, pubname)
    from pg_catalog.pg_publication_tables
   where schemaname in ('public', 'vidgen')
  union all
  select format('function %s: returns %s, %s, %s, security %s, set %s, body %s', name,
           pg_catalog.pg_get_function_result(oid), lanname,
           case provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
           case when prosecdef then 'definer' else 'invoker' end,
           coalesce(array_to_string(proconfig, ', '), 'nothing'),
           case when prosrc = '' then 'parsed' else md5(prosrc) end)
    from functions
  union all
  select format('function %s: grant %s to %s', f.name, acl.privilege_type,
           coalesce(r.rolname, 'public'))
    from functions as f
   cross join pg_catalog.aclexplode(coalesce(f.proacl, pg_catalog.acldefault('f', f.proowner)))
           as acl
    left join pg_catalog.pg_roles as r on r.oid = acl.grantee
   where acl.grantee <> f.proowner
)
select line from lines order by line collate "C"
